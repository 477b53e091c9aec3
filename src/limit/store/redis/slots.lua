-- Slots that nodes have leased.
--
-- The value of a key is four whole numbers for each node that has some: which node it is, how many,
-- until when, and the turn in which it said so.
local slots = {}

local function free(k)
  return math.max(0, k.amount - k.others - k.mine)
end

local function load(k)
  local value = redis.call('GET', k.name)
  local mine = 0
  k.others, k.leases = 0, {}
  if k.reset == 1 then
    publish(k)
    value = nil
  end
  for node, count, till, turn in string.gmatch(value or '', '(%d+) (%d+) (%d+) (%d+)') do
    -- A clock that was set back makes no lease longer.
    till = math.min(tonumber(till), now + k.lease)
    if till > now then
      if tonumber(node) == k.node then
        mine = tonumber(count)
        k.late = tonumber(turn) >= k.turn
      end
      if tonumber(node) ~= k.node or k.late then
        k.others = k.others + tonumber(count)
        k.leases[#k.leases + 1] = { tonumber(node), tonumber(count), till, tonumber(turn) }
      end
    end
  end
  -- What is under way cannot be taken back, also where the lease was lost meanwhile.
  k.mine = k.hold
  if mine < k.hold then
    k.mine = math.max(k.used, math.min(k.hold, k.amount - k.others))
  end
end

function slots.has(k, n)
  return n == 0 or (not k.late and n <= free(k))
end

function slots.times(k, cost, m)
  if cost == 0 then
    return m
  end
  return k.late and 0 or math.min(m, math.floor(free(k) / cost))
end

function slots.charge(k, n)
  k.mine = k.mine + n
end

function slots.open(k)
  k.amount, k.node, k.turn, k.lease = number(), number(), number(), number()
  k.hold, k.used, k.want, k.nodes, k.reset = number(), number(), number(), number(), number()
  load(k)
end

function slots.close(k)
  -- A call that was overtaken by a later one changes nothing.
  if k.late then
    return 0, k.others
  end
  -- Beforehand only while a quarter is left for who asks.
  local most = math.floor((free(k) - k.amount / 4) / k.nodes)
  local more = math.min(k.want - (k.hold - k.used), most)
  k.mine = k.mine + math.max(0, more)
  if k.mine > 0 then
    k.leases[#k.leases + 1] = { k.node, k.mine, now + k.lease, k.turn }
  end
  local numbers, last = {}, 0
  for _, lease in ipairs(k.leases) do
    last = math.max(last, lease[3])
    for _, value in ipairs(lease) do
      numbers[#numbers + 1] = value
    end
  end
  if last > 0 then
    keep(k, last, unpack(numbers))
  else
    redis.call('DEL', k.name)
  end
  return k.mine, k.others
end
