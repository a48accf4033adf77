"""The settings of a site, METAFLOW_GANG_...: their kinds, the table of all, and variables that name none."""
