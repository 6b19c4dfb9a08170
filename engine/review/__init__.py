"""The queue that people answer, and the Label Studio server it may run on."""
