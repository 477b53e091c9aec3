-- KEYS: S, entry, body, lease. ARGV: random, id, epoch, f, meta, milliseconds to keep, head, body,
-- whether the body is in the entry, holder of the lease, scopes...
local epoch, floor = state()
if redis.call('GET', KEYS[4]) == ARGV[10] then
  redis.call('DEL', KEYS[4])
end
local f = tonumber(ARGV[4])
local scopes = {}
for i = 11, #ARGV do
  scopes[i - 10] = ARGV[i]
end
if epoch ~= ARGV[3] or validity(f, floor, scopes) < 2 then
  return 0
end
local old = redis.call('HMGET', KEYS[2], 'epoch', 'f')
if old[1] == epoch and tonumber(old[2]) > f then
  return 0
end
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('HSET', KEYS[2], 'id', ARGV[2], 'epoch', epoch, 'f', ARGV[4], 'meta', ARGV[5],
  'head', ARGV[7], 'scopes', cmsgpack.pack(scopes))
if ARGV[9] == '1' then
  redis.call('HSET', KEYS[2], 'body', ARGV[8])
else
  -- The id tells whose body it is.
  redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[6])
  redis.call('APPEND', KEYS[3], ARGV[8])
end
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return 1
