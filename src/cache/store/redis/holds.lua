-- KEYS: S. ARGV: random, epoch, f, scopes...
local epoch, _, head = state()
if epoch ~= ARGV[2] then
  return 0
end
return validity(tonumber(ARGV[3]), append_names({}, head, 4), 1)
