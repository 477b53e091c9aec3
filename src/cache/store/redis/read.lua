-- KEYS: S, entry, lease. ARGV: random, holder, milliseconds of the lease, id of the unfit entry.
local epoch, floor = state()
local entry = redis.call('HMGET', KEYS[2], 'id', 'epoch', 'f', 'scopes', 'meta', 'head', 'body')
if entry[1] and entry[1] ~= ARGV[4] and entry[2] == epoch then
  local scopes = cmsgpack.unpack(entry[4])
  local holds = validity(tonumber(entry[3]), floor, scopes)
  local left = redis.call('PTTL', KEYS[2])
  if holds > 0 and left > 0 then
    return { 'found', entry[1], epoch, tonumber(entry[3]), holds, left, entry[5], entry[6], entry[7], scopes }
  end
end
local holder = redis.call('GET', KEYS[3])
if not holder or holder == ARGV[2] then
  redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
  return { 'fill', epoch, sequence() }
end
return { 'wait', epoch, sequence(), redis.call('PTTL', KEYS[3]) }
