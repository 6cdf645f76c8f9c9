"""QRMI's client, made safe: deadlines, threads, classified errors, retries, redaction."""
