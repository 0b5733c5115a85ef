"""One file here is one kind of record: bench/summaries/<case>.py turns the records of that case into a Section."""
