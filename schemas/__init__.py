"""The ground floor: table schemas, typed settings, errors and the small records passed between rooms."""
