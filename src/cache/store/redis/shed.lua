-- KEYS: S. ARGV: random, epoch, up to where to forget the tombstones of keys.
local epoch, floor = state()
local upto = math.min(tonumber(ARGV[3]), sequence())
local from = key_floor(floor)
if epoch ~= ARGV[2] or upto <= from then
  return
end
local found = redis.call('ZRANGE', S, '(' .. number(from), number(upto), 'BYSCORE')
for _, member in ipairs(found) do
  -- What these took was deleted with the invalidation.
  if string.sub(member, 1, 2) == 'Hk' then
    redis.call('ZREM', S, member)
  end
end
-- The sequence is as high as it was, too.
redis.call('ZADD', S, number(upto), '\3')
