"""A virtlockd that isn't: its socket, its protocol and its errors, over locks that outlive the daemon.

rpc          frames, arguments and errors, as bytes
failures     the errors of the real one, by situation
lockspaces   which resources are locked, and for whom
procedures   what each call does
server       connections, and what the end of one means
handover     to a successor, with every descriptor, so that nothing is unlocked for a moment
"""
