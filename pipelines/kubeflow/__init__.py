"""The Kubeflow pipeline: its graph, the entry points of its containers, and the client that submits it.

Only graph.py and package.py import kfp, only client.py kfp_server_api, and only when a command needs them.
"""
