-- KEYS: S, beats. ARGV: random, name, beat.
local _, floor = state()
local beat = redis.call('HGET', KEYS[2], ARGV[2])
if not beat then
  -- The beats are lost. From here on silence can be told.
  redis.call('HSET', KEYS[2], ARGV[2], 1)
elseif beat == ARGV[3] then
  local names, found = directory()
  local left = {}
  for _, name in ipairs(names) do
    if name ~= ARGV[2] then
      left[#left + 1] = name
    end
  end
  if found then
    redis.call('ZREM', S, found)
  end
  if #left > 0 then
    redis.call('ZADD', S, number(floor), '\1' .. table.concat(left, ','))
  end
  redis.call('ZREM', S, '\2' .. ARGV[2])
  redis.call('HDEL', KEYS[2], ARGV[2])
end
