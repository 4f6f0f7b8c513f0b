"""The gateway's own HTTP API: jobs as resources, the scheduler's routes, ComfyUI's newer routes for older backends.

Every route stands in a table with what documents it; ``/openapi.json`` is made from that table. All of it goes through
``gateway.jobs``: nothing here has a way of its own to submit, to follow or to stop a job.
"""
