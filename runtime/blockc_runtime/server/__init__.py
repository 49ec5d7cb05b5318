"""The server: OpenAI routes over HTTP in front of one engine process. Text lives only here."""
