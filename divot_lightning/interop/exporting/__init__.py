"""Write runs as folders that other libraries read, and upload them to the Hugging Face hub."""
