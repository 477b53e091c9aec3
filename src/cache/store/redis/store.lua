-- KEYS: S, entry, lease; for a variant also the generation of its key. ARGV: random, id, epoch, f,
-- milliseconds to keep, entry, body, the field that the body is in, holder of the lease, scopes...
local epoch, floor, head = state()
if redis.call('GET', KEYS[3]) == ARGV[9] then
  redis.call('DEL', KEYS[3])
end
local f = tonumber(ARGV[4])
-- What a read checks, as it is then: the id, f, and the members that decide.
local check = append_names({ ARGV[2], f }, head, 10)
if epoch ~= ARGV[3] or f < key_floor(floor) or validity(f, check, 3) < 2 then
  return 0
end
local old = redis.call('HGET', KEYS[2], 'check')
if old then
  old = cmsgpack.unpack(old)
  if old[3] == head and old[2] > f then
    return 0
  end
end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'check', cmsgpack.pack(check), 'entry', ARGV[6], ARGV[8], ARGV[7])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
if KEYS[4] then
  local generation = redis.call('GET', KEYS[4])
  if not generation then
    generation = ARGV[2]
    redis.call('SET', KEYS[4], generation, 'PX', ARGV[5])
  elseif redis.call('PTTL', KEYS[4]) < tonumber(ARGV[5]) then
    redis.call('PEXPIRE', KEYS[4], ARGV[5])
  end
  redis.call('HSET', KEYS[2], 'generation', generation)
end
return 1
