"""What a qualification leaves: its records, and the SQLite file that keeps them as they come. Nothing here acts."""
