-- KEYS: S. ARGV: random, epoch, up to where to forget.
local epoch, floor = state()
local upto = math.min(tonumber(ARGV[3]), sequence())
if epoch ~= ARGV[2] or upto <= floor then
  return
end
local head = redis.call('ZRANGE', S, 0, 0)[1]
local names, found = directory()
local keep = { number(upto), head }
if found then
  keep[#keep + 1] = number(upto)
  keep[#keep + 1] = found
end
for _, name in ipairs(names) do
  local applied = tonumber(redis.call('ZSCORE', S, '\2' .. name) or 0)
  keep[#keep + 1] = number(math.max(applied, upto))
  keep[#keep + 1] = '\2' .. name
end
-- The floor rises with what is forgotten: nothing that it might have taken holds.
redis.call('ZREMRANGEBYSCORE', S, '-inf', number(upto))
redis.call('ZADD', S, unpack(keep))
