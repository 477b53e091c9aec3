-- KEYS: S, then what hard invalidations of keys delete: for each, the entry that is no variant, and
-- the generation of those that are. ARGV: random, channel, shard, kind, scopes...
local epoch = state()
local n = sequence() + 1
for i = 5, #ARGV do
  redis.call('ZADD', S, number(n), ARGV[4] .. ARGV[i])
end
if #ARGV < 5 then
  redis.call('ZADD', S, number(n), ARGV[4])
end
for i = 2, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
-- A hint; what is not heard is asked for.
redis.pcall('PUBLISH', ARGV[2], ARGV[3])
return { epoch, n }
