"""The configurations of what is compared: each has the gateway's duties, as far as it knows them.

A limit that is checked and passes everything, forwarding fields, an id, the GPU's field, kept-alive connections to the
backend, and one line in an access log for each request; the gateway's metrics are on as well.
"""

from typing import Final

# What nginx needs to keep to itself wherever it runs.
NGINX_FRAME: Final = """
worker_processes 1; daemon off; master_process off; pid {folder}/{name}.pid; error_log {folder}/{name}.log;
events {{ worker_connections 4096; }}
http {{
  keepalive_requests 100000000; server_tokens off; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}/{name}-1; proxy_temp_path {folder}/{name}-2; fastcgi_temp_path {folder}/{name}-3;
  uwsgi_temp_path {folder}/{name}-4; scgi_temp_path {folder}/{name}-5;
  {inside}
}}
"""

NGINX_ORIGIN: Final = """
  access_log off;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ root {folder}/www; }}
  }}
"""

NGINX_PROXY: Final = """
  log_format lines '$remote_addr "$request" $status in=$request_length out=$body_bytes_sent time=$request_time '
                   'backend=$upstream_response_time id=$request_id';
  access_log {folder}/access.log lines buffer=64k flush=1s;
  limit_req_zone $binary_remote_addr zone=all:10m rate=1000000r/s;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream backend {{ server 127.0.0.1:{origin}; keepalive 32; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    client_max_body_size 100m;
    location / {{
      limit_req zone=all burst=1000000 nodelay;
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_connect_timeout 60s; proxy_read_timeout 600s; proxy_send_timeout 600s;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header Host $http_host;
      proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-TARGET-GPU 0;
      proxy_set_header X-Request-ID $request_id;
      proxy_hide_header X-Request-ID;
      add_header X-Request-ID $request_id;
    }}
  }}
"""

HAPROXY: Final = """
global
  nbthread 1
  maxconn 8000
  log stdout format raw local0
defaults
  mode http
  log global
  option httplog
  timeout connect 60s
  timeout client 600s
  timeout server 600s
  timeout tunnel 1h
  timeout http-request 10s
  timeout http-keep-alive 75s
frontend gate
  bind 127.0.0.1:{port} backlog 4096
  unique-id-format %{{+X}}o\\ %ci%cp%fi%fp%Ts%rt%pid
  stick-table type ip size 80k expire 60s store http_req_rate(1s)
  http-request track-sc0 src
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 1000000 }}
  http-request set-header X-Real-IP %[src]
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header X-TARGET-GPU 0
  http-request set-header X-Request-ID %[unique-id]
  http-response set-header X-Request-ID %[unique-id]
  default_backend origin
backend origin
  http-reuse always
  server one 127.0.0.1:{origin} maxconn 1000
"""

GATEWAY: Final = """
[listen]
front_port = {front}
gpu_ports = [{port}]
backlog = 4096

[backend]
url = "http://127.0.0.1:{origin}"
start = false

[jobs]
journal = "{journal}"

[auth]
folder = "{folder}/auth"

[rate]
scope = "all"

[rate.all]
rate = 1000000
burst = 1000000

[log]
level = "info"
access = true
"""
