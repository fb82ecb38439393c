"""Reports of ended runs, as files.

content     what a report is about
page        one HTML file, with `charts` and page.css
tables      CSV, with the column names of Locust
junit       JUnit XML
document    JSON
exporting   a report from the store, in parts
"""
