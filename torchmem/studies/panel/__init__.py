"""`torchmem panel`: one HTML page on which rollouts, real and simulated, are looked at from all sides."""
