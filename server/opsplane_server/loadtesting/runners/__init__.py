"""Load generators: k6 with its metrics sent to this server.

port             what the work needs of a runner
local            k6 as processes of this machine
launcher         the small program between, which outlives the server
k6_binary        which k6, and the options of its version
k6_environment   the environment variables of k6
console          what k6 wrote
endings          how k6 ended, in words
"""
