"""Storage: folders, gs:// and s3:// behind one interface, with ranged reading, multipart upload and retry."""
