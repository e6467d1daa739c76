"""The protocol: records, ballots, host leases, timing, aligned disk I/O. Knows bytes, sectors, disks."""
