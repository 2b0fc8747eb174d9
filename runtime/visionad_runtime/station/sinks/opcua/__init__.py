"""OPC UA sink: a server of OPC 40100-1 (machine vision) and of flat variables."""
