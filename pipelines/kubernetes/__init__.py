"""The fan-out: a stage's tasks as Indexed Jobs on the cluster's pools of nodes, launched and watched from one pod.

`jobs` builds objects from values, `cluster` talks to the API server, `diagnosis` says what an object's state means,
`launcher` starts and watches, `cleanup` ends what a run left behind. Only `cluster` imports kubernetes.
"""
