"""What server and engine say to each other over their socket, and steps as bytes."""
