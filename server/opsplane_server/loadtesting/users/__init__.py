"""Load by simulated users: what they are, how they are shared out, and the script that they become."""
