"""Speed, told as ratios measured in one run. `make bench` runs them; nothing here can fail a build."""
