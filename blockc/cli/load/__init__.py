"""Load for a server: when which app is asked, asking, and figures of the answers."""
