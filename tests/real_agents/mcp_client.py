"""An agent on the MCP Python SDK that is killed in the middle of a tool call.

mcp_client.py COMMAND ARGS...: the server, which the SDK starts in a session of its own with our stderr.
"""

import asyncio
import os
import signal
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client


async def killed(*_progress):
    print("the call is under way", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


async def main():
    server = StdioServerParameters(command=sys.argv[1], args=sys.argv[2:])
    async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        tools = [tool.name for tool in (await session.list_tools()).tools]
        long = next(name for name in tools if "long" in name.lower())
        print("calling", flush=True)
        await session.call_tool(long, {"duration": 600, "steps": 6000}, progress_callback=killed)


asyncio.run(main())
