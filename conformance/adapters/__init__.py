"""The clients under test behind one interface (base.py); each runs in a process of its own (worker.py)."""
