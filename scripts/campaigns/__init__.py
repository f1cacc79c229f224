"""What `scripts/campaign.py` runs: a campaign a file, on forks of one process."""
