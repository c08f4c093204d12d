"""An example of an external kind of student: two numbers in, their sum out. edgecompress itself does not know it."""
