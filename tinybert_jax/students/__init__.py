"""The sizes of students, and where their training starts."""
