"""A launch of several ranks as a process: its log, its signals, its end."""
