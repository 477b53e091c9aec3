-- KEYS: S. ARGV: random, channel, shard, kind, scopes...
local epoch = state()
local n = sequence() + 1
for i = 5, #ARGV do
  redis.call('ZADD', S, number(n), ARGV[4] .. ARGV[i])
end
if #ARGV < 5 then
  redis.call('ZADD', S, number(n), ARGV[4])
end
-- A hint; what is not heard is asked for.
redis.pcall('PUBLISH', ARGV[2], ARGV[3])
return { epoch, n }
