"""Who may do what: principals, contracts, policy and audit."""
