-- KEYS: S, beats. ARGV: random, epoch, up to where the node has applied, name of the node.
local epoch, floor = state()
local since = 0
if ARGV[2] == epoch then
  since = tonumber(ARGV[3])
end
local member = '\2' .. ARGV[4]
if not redis.call('ZSCORE', S, member) then
  local names, found = directory()
  names[#names + 1] = ARGV[4]
  if found then
    redis.call('ZREM', S, found)
  end
  redis.call('ZADD', S, number(floor), '\1' .. table.concat(names, ','))
end
redis.call('ZADD', S, number(math.max(since, floor)), member)
redis.call('HINCRBY', KEYS[2], ARGV[4], 1)
local found = redis.call('ZRANGE', S, '(' .. number(since), '+inf', 'BYSCORE', 'WITHSCORES')
local news = {}
for i = 1, #found, 2 do
  if string.byte(found[i]) > 3 then
    news[#news + 1] = found[i]
    news[#news + 1] = tonumber(found[i + 1])
  end
end
return { epoch, floor, key_floor(floor), sequence(), redis.call('ZCARD', S), news }
