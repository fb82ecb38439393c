"""k6 scripts: made from load tests (`script`), judged by k6 (`inspect`), wrapped where users bring their own."""
