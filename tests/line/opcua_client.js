// A client of node-opcua that does one job. Arguments: address, folder for its certificates, password. Prints JSON.
const { OPCUAClient, MessageSecurityMode, SecurityPolicy, UserTokenType, AttributeIds, DataType, VariantArrayType,
        resolveNodeId } = require("node-opcua-client");
const { OPCUACertificateManager } = require("node-opcua-certificate-manager");
const [address, folder, password] = process.argv.slice(2);
(async () => {
  const manager = new OPCUACertificateManager({ rootFolder: folder + "/pki", automaticallyAcceptUnknownCertificate: true });
  await manager.initialize();
  const client = OPCUAClient.create({
    securityMode: MessageSecurityMode.SignAndEncrypt, securityPolicy: SecurityPolicy.Basic256Sha256, endpointMustExist: false,
    clientCertificateManager: manager, connectionStrategy: { maxRetry: 1, initialDelay: 100 } });
  await client.connect(address);
  let session;
  try { session = await client.createSession({ type: UserTokenType.UserName, userName: "plc", password }); }
  catch (error) { console.log(JSON.stringify({ refused: error.message })); await client.disconnect(); return; }
  const spaces = (await session.read({ nodeId: "i=2255", attributeId: AttributeIds.Value })).value.value;
  const own = spaces.indexOf("urn:visionad:station"), mv = spaces.indexOf("http://opcfoundation.org/UA/MachineVision");
  const flat = async name => (await session.read({ nodeId: `ns=${own};s=${name}`, attributeId: AttributeIds.Value })).value.value;
  const path = async steps => {
    const { makeBrowsePath } = require("node-opcua-client");
    return (await session.translateBrowsePath(makeBrowsePath(`ns=${own};s=VisionSystem`, steps))).targets[0].targetId; };
  const structure = (type, fields) => session.constructExtensionObject(resolveNodeId(`ns=${mv};i=${type}`), fields);
  const call = async (object, method, inputArguments) => {
    const result = await session.call({ objectId: await path(object), methodId: await path(`${object}/${mv}:${method}`), inputArguments });
    return [result.statusCode.name, ...result.outputArguments.map(one => one.value)]; };
  const given = async (type, id) => ({ dataType: DataType.ExtensionObject, value: await structure(type, { id }) });
  const out = { recipe: await call(`/${mv}:RecipeManagement`, "PrepareRecipe", [await given(3002, "1"), await given(3013, "")]) };
  const automatic = `/${mv}:VisionStateMachine/${mv}:AutomaticModeStateMachine`;
  out.state = (await session.read({ nodeId: await path(`${automatic}/CurrentState`), attributeId: AttributeIds.Value })).value.value.text;
  out.job = await call(automatic, "StartSingleJob", [await given(3015, "4"), await given(3004, "SN-bad"), await given(3002, ""),
    await given(3003, ""), { dataType: DataType.Variant, arrayType: VariantArrayType.Array, value: [] }]);
  while (!(await flat("Valid"))) await new Promise(done => setTimeout(done, 20));
  out.flat = [await flat("Evaluation"), await flat("Part"), await flat("Score"), await flat("Pass"), await flat("Reject")];
  const result = await call(`/${mv}:ResultManagement`, "GetResultById", [await given(3021, "1"), { dataType: DataType.Int32, value: 0 }]);
  out.result = [result[0], result[2].partId.id, result[2].resultContent[0].value, result[3]];
  console.log(JSON.stringify(out));
  await session.close(); await client.disconnect();
})().catch(error => { console.error(error); process.exit(1); });
