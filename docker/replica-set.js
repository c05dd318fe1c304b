// Makes the replica set and its users, or finds them made. Run by mongosh on the loopback of the first member.
// Environment: MEMBERS (host:port, comma separated, the first is this one), MONGODB_ROOT_PASSWORD, MONGODB_PASSWORD.
// Plain statements on purpose: mongosh does not await what a callback returns, so errors would escape a `catch` around it.

const members = process.env.MEMBERS.split(",");
const port = members[0].split(":")[1];
const admin = new Mongo(`mongodb://127.0.0.1:${port}/?directConnection=true`).getDB("admin");

function throwUnless(error, expected) {
  if (!expected.includes(error.codeName)) throw error;
}

function initiate() {
  try {
    admin.runCommand({ replSetInitiate: { _id: "rs0", members: members.map((host, _id) => ({ _id, host })) } });
  } catch (error) {
    // A set that exists has users, and then a stranger may not even ask.
    throwUnless(error, ["AlreadyInitialized", "Unauthorized"]);
  }
}

// True on the primary; false on a member of a set whose primary is another one, which has its users then.
function isPrimary() {
  for (let attempt = 0; attempt < 120; attempt++) {
    const hello = admin.hello();
    if (hello.isWritablePrimary) return true;
    if (hello.secondary && hello.primary) return false;
    sleep(500);
  }
  throw new Error("no primary within a minute");
}

function logIn() {
  try {
    admin.auth("root", process.env.MONGODB_ROOT_PASSWORD);
    return true;
  } catch (error) {
    throwUnless(error, ["AuthenticationFailed"]);
    return false;
  }
}

function makeServerUser() {
  const roles = ["readWrite", "dbAdmin"].map((role) => ({ role, db: "fhir_imaging" }));
  try {
    admin.createUser({ user: "fhir_imaging", pwd: process.env.MONGODB_PASSWORD, roles });
  } catch (error) {
    throwUnless(error, ["Location51003"]); // it is there
  }
}

initiate();
if (isPrimary()) {
  if (!logIn()) {
    // The loopback may make the first user, and only the first. With users there, this fails: the password is wrong.
    admin.createUser({ user: "root", pwd: process.env.MONGODB_ROOT_PASSWORD, roles: ["root"] });
    logIn();
  }
  makeServerUser();
}
print("replica set and users are there");
