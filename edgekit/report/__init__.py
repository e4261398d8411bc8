"""What people see of a run: terminal tables, one self-contained HTML page, one JSON document."""
