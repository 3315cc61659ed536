"""The Kubeflow pipeline: its graph, the entry points of its containers, and the client that submits it.

Only graph.py, package.py and client.py import kfp, and they are imported when a command needs them.
"""
