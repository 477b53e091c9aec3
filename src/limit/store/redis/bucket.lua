-- Buckets by GCRA, of which nodes hold a part in reserve.
--
-- The value of a key is eight whole numbers:
--   the theoretical arrival time, its part, the generation, up to where it was healed,
--   since when the bucket was not seen full, the epoch, the capacity that nodes hold in reserve
--   since this epoch, and since the one before.
-- Parts are by the amount of the quota.
local bucket = {}
local EPOCH = 10000000
local epoch = math.floor(now / EPOCH)

-- The time at which n more tokens have come.
local function plus(k, whole, part, n)
  local product = n * k.p
  local rest = product % k.a
  whole = whole + n * k.w + (product - rest) / k.a
  part = part + rest
  if part >= k.a then
    return whole + 1, part - k.a
  end
  return whole, part
end

local function held(k)
  return k.cur + k.prev
end

-- Whether n tokens are there, as seen so much ahead of now.
local function has(k, n, ahead)
  local whole, part = plus(k, k.tat, k.part, n)
  local most, rest = plus(k, now + ahead, 0, math.max(0, k.b - held(k)))
  return whole < most or (whole == most and part <= rest)
end

-- How often that many tokens are there, at most m times.
local function times(k, cost, m, ahead)
  if cost == 0 then
    return m
  end
  local horizon = plus(k, now + ahead, 0, math.max(0, k.b - held(k)))
  local n = math.floor((horizon - k.tat) / (cost * (k.w + k.p / k.a)))
  n = math.max(0, math.min(n, m))
  while n > 0 and not has(k, n * cost, ahead) do
    n = n - 1
  end
  while n < m and has(k, (n + 1) * cost, ahead) do
    n = n + 1
  end
  return n
end

local function charge(k, n)
  if n > 0 then
    if k.tat == now and k.part == 0 then
      k.since = now
    end
    k.tat, k.part = plus(k, k.tat, k.part, n)
    k.dirty = true
  end
end

-- How many of so many tokens can be put aside, so that a quarter is left for who waits.
local function spare(k, n)
  local left = math.floor(math.max(0, k.b - held(k)) / 4)
  return math.max(0, times(k, 1, n + left, 0) - left)
end

local function load(k)
  local value = redis.call('GET', k.name)
  local tat, part, gen, healed, since, of, cur, prev
  if value then
    tat, part, gen, healed, since, of, cur, prev =
      string.match(value, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  end
  if tat then
    k.tat, k.part, k.gen, k.healed = tonumber(tat), tonumber(part), tonumber(gen), tonumber(healed)
    k.since, k.epoch, k.cur, k.prev = tonumber(since), tonumber(of), tonumber(cur), tonumber(prev)
    k.part = math.min(k.part, k.a - 1)
  else
    k.missing = true
    k.tat, k.part, k.gen, k.healed = now, 0, nonce, now
    k.since, k.epoch, k.cur, k.prev = now, epoch, 0, 0
  end
  -- Who did not come back in time has spent what it held, as of when it should have.
  while k.epoch < epoch and held(k) > 0 do
    k.epoch = k.epoch + 1
    if k.prev > 0 then
      if k.tat < k.epoch * EPOCH then
        k.tat, k.part = k.epoch * EPOCH, 0
      end
      k.tat, k.part = plus(k, k.tat, k.part, k.prev)
    end
    k.prev, k.cur = k.cur, 0
    k.dirty = true
  end
  k.epoch = math.max(k.epoch, epoch)
  if k.tat < now then
    k.tat, k.part = now, 0
  end
  -- A clock that was set back, or a limit that was lowered, locks nobody out.
  k.furthest = plus(k, now, 0, 2 * k.b) + 400000
  if k.tat > k.furthest then
    k.tat, k.part, k.dirty = k.furthest, 0, true
  end
end

-- What the node knows of the key.
local function account(k)
  if k.reset == 1 then
    k.tat, k.part, k.since, k.healed, k.dirty = now, 0, now, FAR, true
  end
  k.claim = 0
  if k.known == 0 then
    return
  end
  if knows(k, k.tat) then
    if k.size > 0 and k.of == k.epoch and k.cur >= k.size then
      k.claim = k.size
    elseif k.size > 0 and k.of == k.epoch - 1 and k.prev >= k.size then
      k.prev, k.cur, k.claim, k.dirty = k.prev - k.size, k.cur + k.size, k.size, true
    end
    return
  end
  -- What the node has seen holds.
  local hint = math.min(k.hint, k.furthest)
  if hint > k.healed then
    k.tat = math.min(k.furthest, k.tat + hint - k.healed)
    k.healed, k.dirty = hint, true
  end
  if k.size > 0 and k.of >= k.epoch - 1 then
    local room = math.max(0, math.floor(k.b / 4) - held(k))
    k.cur = k.cur + (k.missing and room or math.min(k.size, room))
    k.dirty = true
  end
end

local function owe(k)
  if k.owed == 0 then
    return
  end
  local lowest = plus(k, now, 0, 2 * k.b)
  local whole, part = k.tat, k.part
  charge(k, k.owed)
  if k.tat >= lowest then
    k.tat, k.part = lowest, 0
    if whole > lowest then
      k.tat, k.part = whole, part
    end
  end
end

local function refill(k)
  k.added = 0
  if k.claim > 0 and k.release == 1 then
    k.cur = k.cur - k.claim
    charge(k, k.spent)
    k.claim, k.dirty = 0, true
    return
  end
  if k.claim > 0 and k.spent > 0 then
    k.added = math.min(k.spent, spare(k, k.spent))
    local less = k.spent - k.added
    charge(k, k.spent)
    k.cur, k.claim = k.cur - less, k.claim - less
  end
  if k.want > k.claim then
    local more = math.min(k.want - k.claim, math.floor(k.b / 4) - held(k))
    more = more > 0 and math.min(more, spare(k, more)) or 0
    if more > 0 then
      k.cur, k.claim, k.added, k.dirty = k.cur + more, k.claim + more, k.added + more, true
    end
  end
end

local function settle(k)
  if k.reset == 1 then
    publish(k)
  end
  if k.refund > 0 and k.tat > now and now - k.age >= k.since then
    if not has(k, k.refund, 0) then
      publish(k)
    end
    k.tat, k.part = plus(k, k.tat, k.part, -k.refund)
    if k.tat < now then
      k.tat, k.part = now, 0
    end
    k.dirty = true
  end
end

local function save(k)
  if not k.dirty then
    return
  end
  local full = k.tat
  if held(k) > 0 then
    full = plus(k, math.max(full, (k.epoch + 2) * EPOCH), 0, held(k))
  end
  if k.healed == FAR then
    full = math.max(full, k.furthest)
  end
  if full <= now and k.part == 0 then
    redis.call('DEL', k.name)
    return
  end
  wrote(k)
  keep(k, full, k.tat, k.part, k.gen, k.healed, k.since, k.epoch, k.cur, k.prev)
end

bucket.has, bucket.times, bucket.charge = has, times, charge

function bucket.open(k)
  k.w, k.p, k.a, k.b = number(), number(), number(), number()
  k.known, k.hint, k.size, k.of, k.spent = number(), number(), number(), number(), number()
  k.release, k.want, k.owed, k.refund, k.age = number(), number(), number(), number(), number()
  k.reset = number()
  load(k)
  account(k)
  owe(k)
end

-- Slots that come, of which the node denies in between by itself.
function bucket.book(k, most)
  if held(k) > 0 then
    return 0
  end
  local booked = times(k, 1, most, 400000)
  booked = booked > 1 and booked or 0
  charge(k, booked)
  return booked
end

function bucket.close(k)
  local before = k.claim
  refill(k)
  settle(k)
  save(k)
  return k.tat, k.part, k.gen, held(k), before, k.claim, k.added, k.epoch
end
