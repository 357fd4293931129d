"""An input endpoint: what is posted to it becomes a line in the agent's FIFO, and only then is acknowledged."""

import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, FIFO = int(sys.argv[1]), sys.argv[2]


class Endpoint(BaseHTTPRequestHandler):
    def do_POST(self):
        message = self.rfile.read(int(self.headers["Content-Length"]))
        fifo = os.open(FIFO, os.O_WRONLY)  # for each message, as such endpoints do
        os.write(fifo, message + b"\n")  # less than PIPE_BUF: all of it at once
        os.close(fifo)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False  # what was begun is answered before we go
    request_queue_size = 64


server = Server(("127.0.0.1", PORT), Endpoint)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever(poll_interval=0.05)
server.server_close()
