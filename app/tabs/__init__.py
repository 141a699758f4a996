"""One file a tab: `create_x_tab` builds the widgets, `wire_x_tab` connects them once every widget exists."""
