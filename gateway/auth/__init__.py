"""Who may do what: keys and their scopes, the login of browsers, where requests may come from, and quotas."""
