"""What the pytest plugin is made of: options, collection of scenario files, fixtures, evidence."""
