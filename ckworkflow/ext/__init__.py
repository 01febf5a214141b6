"""What plugs into other libraries' own plug-in systems."""
