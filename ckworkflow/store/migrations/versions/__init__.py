"""One module per revision of the schema; its number is `schema.CODE_REVISION`."""
