-- KEYS: S. Who the server is, and of which version.
local server = redis.call('INFO', 'server')
return { string.match(server, 'run_id:(%w+)'), string.match(server, 'redis_version:(%d+)') }
