"""What a cluster lacks to run recaption, and what to do about it. A check is a function from a Context to a Finding.

It changes nothing but for one object in the storage, which it takes away again, and reads no Secret.
"""
